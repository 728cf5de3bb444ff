"""QQ's HTTP side: calls that protect secrets, the token, the API, the way to the gateway."""
