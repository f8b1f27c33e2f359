"""Other libraries' ways to use ours; each module here needs the library it is named after, and nothing else does."""
