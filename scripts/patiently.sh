# To be sourced. Retries for networks that fail now and then, and for an apt that another program has locked.

# Run a command up to three times, until it succeeds.
patiently() {
    "$@" || { sleep 5; "$@"; } || { sleep 20; "$@"; }
}
