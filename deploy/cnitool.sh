#!/usr/bin/env bash
# Prints where the CNI project's own client, cnitool, is: a runtime without a runtime, which speaks CNI 1.1 (gc, status).
#
# Debian has no package of it. Its one release that needs nothing but Go's standard library comes from Go's module proxy,
# checked against the sum below, and is built with Debian's Go: once, in 15 s, into the user's cache folder.
set -euo pipefail

readonly MODULE=github.com/containernetworking/cni VERSION=v1.3.0
readonly SUM=h1:v6EpN8RznAZj9765HhXQrtXgX+ECGebEYEmnuFjskwo=
readonly GO=/usr/lib/go-1.19/bin/go
readonly HOME_OF_IT=${XDG_CACHE_HOME:-$HOME/.cache}/muslin/cnitool/$VERSION

fail() {
    printf 'cnitool: %s\n' "$*" >&2
    exit 1
}

build() {
    local scratch=$1 told from
    [ -x "$GO" ] || fail "there is no $GO; install the package golang-1.19-go (deploy/install.sh does)"
    # a Go of its own: none of the user's settings, folders or other versions
    export GOENV=off GOPATH=$scratch/path GOCACHE=$scratch/cache GOFLAGS=-modcacherw CGO_ENABLED=0 GOWORK=off
    cd "$scratch"
    told=$("$GO" mod download -json "$MODULE@$VERSION") || fail "$MODULE@$VERSION cannot be had: $told"
    grep -qF "\"$SUM\"" <<<"$told" || fail "$MODULE@$VERSION is not what it was: its sum is no longer $SUM"
    from=$(sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' <<<"$told")
    cp -r "$from" source
    cd source
    # its tests' requirements are left out; of newer Go it uses two functions, once each, that Debian's Go 1.19 lacks
    printf 'module %s\n\ngo 1.19\n' "$MODULE" >go.mod
    mkdir newer
    cat >newer/newer.go <<'GO'
package newer

import (
	"errors"
	"sort"
	"strings"
)

func SortFunc[S ~[]E, E any](list S, compare func(a, b E) int) {
	sort.Slice(list, func(i, j int) bool { return compare(list[i], list[j]) < 0 })
}

func Join(errs ...error) error {
	var said []string
	for _, err := range errs {
		if err != nil {
			said = append(said, err.Error())
		}
	}
	if said == nil {
		return nil
	}
	return errors.New(strings.Join(said, "\n"))
}
GO
    sed -i "s#\"slices\"#\"$MODULE/newer\"#; s#slices\.#newer.#" libcni/conf.go
    sed -i "s#^\t\"errors\"#\t\"$MODULE/newer\"#; s#errors\.Join#newer.Join#" libcni/api.go
    "$GO" build -trimpath -o ../cnitool ./cnitool >&2 || fail "it cannot be built"
}

if [ ! -x "$HOME_OF_IT/cnitool" ]; then
    mkdir -p "$HOME_OF_IT"
    scratch=$(mktemp -d "$HOME_OF_IT/build-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    (build "$scratch")
    mv "$scratch/cnitool" "$HOME_OF_IT/cnitool"
fi
printf '%s\n' "$HOME_OF_IT/cnitool"
