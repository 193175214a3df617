#!/usr/bin/env bash
# Builds everything that a release hands out: the agent for each system, the edge for
# Linux, deb and rpm of both, a bill of materials (CycloneDX) for each binary, and
# SHA256SUMS over all of it. Arguments are the version, the directory to build into,
# and the systems (linux/amd64 ...; default all). The same commit and version give the
# same binaries. `make packages` calls it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
version=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
[ $# -gt 0 ] || set -- linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
cd "$root"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# build PROGRAM OS ARCH FILE
build() {
	CGO_ENABLED=0 GOOS=$2 GOARCH=$3 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$4" "./$1"
	go run ./deploy/packages/sbom -version "$version" "$4" >"$4.cdx.json"
	echo "$4"
}

# Packages install into /usr/bin, which is not where units for hand-made
# installations look.
sed 's,/usr/local/bin/,/usr/bin/,' deploy/systemd/wormhole-edge.service >"$work/wormhole-edge.service"
sed 's,/usr/local/bin/,/usr/bin/,' deploy/systemd/wormhole@.service >"$work/wormhole@.service"
GOBIN=$work go install "$nfpm"

# A package's version begins with a digit: a build that is no release is 0.0.0.
case ${version#v} in
[0-9]*.[0-9]*.[0-9]*) package=${version#v} ;;
*) package=0.0.0+$(printf '%s' "$version" | tr -c 'A-Za-z0-9' .) ;;
esac

for target; do
	os=${target%/*} arch=${target#*/} suffix=
	[ "$os" != windows ] || suffix=.exe
	build wormhole "$os" "$arch" "$out/wormhole-$os-$arch$suffix"
	[ "$os" = linux ] || continue
	build edge "$os" "$arch" "$out/edge-$os-$arch"
	for name in wormhole wormhole-edge; do
		for format in deb rpm; do
			ARCH=$arch VERSION=$package BINARIES=$out WORK=$work "$work/nfpm" package \
				--config "deploy/packages/$name.yaml" --packager "$format" --target "$out/" >/dev/null
		done
	done
done

cd "$out"
find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%f\n' | LC_ALL=C sort | xargs sha256sum >"$work/sums"
mv "$work/sums" SHA256SUMS
