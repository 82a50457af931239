"""Our programs, with the line protocol of the peers'."""
