"""Text of others, where what is wrong is an error of ours: names, base64url, members of JSON objects. Pure; the rest is in `program_parts`."""
