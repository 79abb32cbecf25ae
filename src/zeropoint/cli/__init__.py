"""The command line: one module of `cli.commands` a command, its file name the command's name."""
