"""What the first run puts in place (environment, engine, image, embedded server), and `doctor`."""
