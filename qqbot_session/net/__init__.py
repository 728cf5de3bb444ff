"""Names, addresses and proxies: how everything of a bot gets out of its machine."""
