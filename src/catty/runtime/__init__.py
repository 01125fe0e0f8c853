"""What runs inside a machine, on an interpreter of its own: init (PID 1), terminal, workspace."""
