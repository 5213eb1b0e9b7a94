#!/usr/bin/env bash
# Installs what muslin needs on Debian 12 and nothing that is there already:
#   - Debian packages (with sudo, only if we are not root); daemons that come with them are not started,
#   - for the User-Mode Linux kernel, a compiler and the kernel's source, only where this kernel has no IP-in-IP,
#   - cnitool, the CNI project's own client, built once into the user's cache folder (cnitool.sh),
#   - .venv, with muslin in it as it stands in this folder.
# With everything in place it takes a tenth of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly STAMP=.venv/.installed
readonly PYTHON=/usr/bin/python3
LOG=

PACKAGES=(
    python3 python3-venv                       # muslin itself
    nftables iproute2 procps util-linux        # what it drives
    bird2 frr gobgpd                           # the lab's routers
    etcd-server etcd-client                    # the datastore at scale, and a look into it
    tcpdump iperf3 iputils-ping conntrack      # looking at a lab from outside
    podman containerd runc busybox-static      # container runtimes, and what a container of the tests runs
    containernetworking-plugins                # portmap and bandwidth beside ours, ptp and host-local as its peer
    golang-1.19-go                             # what cnitool is built with
)
UML_PACKAGES=(linux-source-6.1 gcc libc6-dev make flex bison bc libelf-dev libssl-dev xz-utils)

say() { printf 'install: %s\n' "$*"; }

fail() {
    say "failed: $1"
    if [ -n "$LOG" ] && [ -s "$LOG" ]; then
        tail -n 20 "$LOG" | sed 's/^/    /'
        say "all of it: $LOG"
    fi
    say "remedy: $2"
    exit 1
}

# Everything noisy goes to the log: quietly WHAT-FAILED REMEDY COMMAND...
quietly() {
    local what=$1 remedy=$2
    shift 2
    [ -n "$LOG" ] || LOG=$(mktemp "${TMPDIR:-/tmp}/muslin-install.XXXXXX.log")
    "$@" >>"$LOG" 2>&1 </dev/null || fail "$what" "$remedy"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

installed() { [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing() {
    local package
    for package in "$@"; do
        installed "$package" || printf '%s\n' "$package"
    done
}

# Whether this kernel can make an IP-in-IP device, tried in a network namespace that goes with the command.
has_ipip() {
    local enter=(unshare --net)
    [ "$(id -u)" -eq 0 ] || enter=(unshare --user --map-root-user --net)
    "${enter[@]}" ip link add name try type ipip remote 192.0.2.1 local 192.0.2.2 2>/dev/null
}

# Packages are unpacked under a policy that starts no daemon; a policy that was there before is put back.
install_packages() {
    local policy=/usr/sbin/policy-rc.d kept=
    say "installing with apt-get$([ "$(id -u)" -eq 0 ] || echo ' (sudo may ask for your password)'): $*"
    [ "$(id -u)" -eq 0 ] || sudo -v || fail "no right to install packages" "run: sudo apt-get install $*"
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        kept=$policy.muslin-kept
        as_root mv "$policy" "$kept"
    fi
    # shellcheck disable=SC2064  # the names are those of now
    trap "restore_policy '$policy' '$kept'" EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    quietly "apt-get update" "check the network and /etc/apt/sources.list, then run this again" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    quietly "apt-get install" "see the lines above; after mending it run this again" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y -o DPkg::Lock::Timeout=120 --no-install-recommends "$@"
    restore_policy "$policy" "$kept"
    trap - EXIT
}

restore_policy() {
    as_root rm -f "$1"
    [ -z "$2" ] || as_root mv "$2" "$1"
}

# What the virtual environment was made from: the project's dependencies, this folder and the Python.
fingerprint() { { cat pyproject.toml; pwd; "$PYTHON" --version; } | sha256sum | cut -d' ' -f1; }

make_environment() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version) is too old" "muslin needs Python 3.11: use Debian 12"
    say "making .venv and installing muslin's Python dependencies"
    rm -f "$STAMP"
    [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        quietly "making .venv" "remove .venv and run this again" "$PYTHON" -m venv --clear .venv
    quietly "pip install" "check the network (pip needs a package index), then run this again" \
        .venv/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
    fingerprint >"$STAMP"
}

main() {
    command -v dpkg-query >/dev/null || fail "this is no Debian" "muslin installs itself on Debian 12"
    local wanted
    mapfile -t wanted < <(missing "${PACKAGES[@]}")
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
    quietly "building cnitool" "check the network (Go asks its module proxy), then run this again" bash deploy/cnitool.sh
    if ! has_ipip; then
        mapfile -t wanted < <(missing "${UML_PACKAGES[@]}")
        if [ ${#wanted[@]} -gt 0 ]; then
            say "this kernel has no IP-in-IP: a User-Mode Linux kernel will stand in, built here once"
            install_packages "${wanted[@]}"
        fi
    fi
    if [ ! -x .venv/bin/python ] || [ "$(cat "$STAMP" 2>/dev/null)" != "$(fingerprint)" ]; then
        make_environment
    fi
    [ -z "$LOG" ] || rm -f "$LOG"
}

main
