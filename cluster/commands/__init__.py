"""What `starling COMMAND` does: one module each, whose `main(args)` returns the exit code."""
