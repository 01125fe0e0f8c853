"""Messages between client, server and machine. No I/O in here: bytes in, values out."""
