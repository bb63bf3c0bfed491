"""The `mbjax` command: parsing and printing, one file per command; all work is done by the rooms below."""
