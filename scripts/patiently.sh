# To be sourced: what the set-up does on machines whose network hiccups, or whose apt is in use by another program.

# Run a command, three times before it counts as failed.
patiently() {
    "$@" || { sleep 5; "$@"; } || { sleep 20; "$@"; }
}
