"""Where BLE adverts come from: one small interface, one module per radio."""
