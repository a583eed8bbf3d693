"""What a process has from its system: files for its owner alone, signals, standard streams, tasks. The rest is in `program_parts`."""
