"""The commands. Each module defines `HELP` (one line), `add_arguments(parser)` and `run(args)`, which returns the exit
code; the module's docstring is the command's help text."""
