"""Exit statuses: a contract with the programs that call the command line."""

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_QUARANTINED = 3
EXIT_CLIENT_FAILED = 4
EXIT_UNHEALTHY = 5
EXIT_NOT_FOUND = 6
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
