"""Settings as values: the tables of them, what each may be, the config file, and what is kept out of messages."""
