#!/usr/bin/env bash
# Writes into a directory what has to go with the programs, and what they are made of: notices.sh DIR [TARGET]
#
#   flowscribe.txt, flowscribe-exporter.txt            licences and notices of every package that is linked into a program
#   flowscribe.cdx.json, flowscribe-exporter.cdx.json  a software bill of materials of each (CycloneDX 1.5)
#   system.txt                                         of what comes from the system: C library, Rust's library, certificates
#
# Builds cargo-about and cargo-cyclonedx where they are missing (5 minutes), and asks no server of theirs.
set -euo pipefail
mkdir -p "${1:?notices.sh DIR [TARGET]}"
output=$(realpath "$1")
cd "$(dirname "$0")/.."
target=${2:-$(rustc -vV | sed -n 's/^host: //p')}
command -v cargo-about > /dev/null || cargo install --quiet --locked cargo-about --version 0.9.3 --features cli
command -v cargo-cyclonedx > /dev/null || cargo install --quiet --locked cargo-cyclonedx --version 0.5.9
cargo fetch --locked --quiet
(cd exporter-ebpf && cargo fetch --locked --quiet)
about=$PWD/deploy/notices

# The licences of a package's dependencies, each text once, with those that it is of.
licences() {
  cargo about generate --offline --locked --fail --target "$target" --manifest-path "$1" --config "$about/about.toml" \
    "$about/notices.hbs"
}

# What the dependencies of a package say in a file NOTICE, which the Apache License wants to be passed on.
notices() {
  cargo metadata --format-version 1 --locked --offline --filter-platform "$target" |
    python3 "$about/notices.py" "$1"
}

for program in flowscribe:analyzer flowscribe-exporter:exporter; do
  name=${program%:*} package=${program#*:}
  {
    echo "$name is under the Apache License 2.0. It is linked with the following."
    licences "$package/Cargo.toml"
    if [ "$package" = exporter ]; then
      echo 'Its eBPF programs, which are part of it, are linked with the following.'
      licences exporter-ebpf/Cargo.toml
    fi
    notices "$package"
  } > "$output/$name.txt"
done

boms=$(mktemp -d)
trap 'find . -name "*_bin.cdx.json" -not -path "./target/*" -delete; rm -r "$boms"' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --describe binaries --no-build-deps --target "$target"
mv analyzer/flowscribe_bin.cdx.json "$boms/flowscribe"
mv exporter/flowscribe-exporter_bin.cdx.json "$boms/flowscribe-exporter"
for name in flowscribe flowscribe-exporter; do
  # Whoever builds it has it somewhere else.
  sed "s|file://$PWD|file:///flowscribe|g" "$boms/$name" > "$output/$name.cdx.json"
done

{
  echo "The programs are linked statically with the GNU C Library and the compiler's runtime library, as Debian has them, and
with Rust's standard library (MIT OR Apache-2.0). To link them with another C library, build them anew from their source:
deploy/build-static.sh. The image has the certificates of Debian's package ca-certificates."
  for text in /usr/share/doc/{libc6-dev,libgcc-12-dev,ca-certificates}/copyright /usr/share/common-licenses/LGPL-2.1; do
    if [ -f "$text" ]; then
      printf '\n%s\n%s\n\n' "${text//?/-}" "$text"
      cat "$text"
    fi
  done
} > "$output/system.txt"
grep -q 'GNU Lesser General Public License' "$output/system.txt"
