#!/usr/bin/env bash
# Installs those of Debian's packages that are not installed yet: install-missing.sh PACKAGE…
# Without root it names them instead.
set -euo pipefail
missing=()
for package in "$@"; do
  dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed ||
    missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "missing ${missing[*]}: install them, or run this as root" >&2
  exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
