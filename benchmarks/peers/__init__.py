"""What people would use instead: programs for the peers' environment, each with the line protocol."""
