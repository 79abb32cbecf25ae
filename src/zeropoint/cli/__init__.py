"""The command line. Each command is one module of `cli.commands` with the command's name."""
