#!/usr/bin/env bash
# Runs apt for other suites or another architecture than this Debian's, with a state of its own, so that neither the
# machine's lists of packages nor what is installed changes:
#   apt-apart.sh ARCHITECTURE 'SUITE…' apt-get|apt-cache ARGUMENT…
# Packages come from where this machine has its own from.
set -euo pipefail
architecture=$1 suites=$2
shift 2
state=${XDG_CACHE_HOME:-$HOME/.cache}/flowscribe/apt/${suites// /-}-$architecture

# Prints the archive of a suite; security updates have one of their own.
archive() {
  local sites main security
  # shellcheck disable=SC2016 # apt's variables
  sites=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(SITE)' 'Created-By: Packages' | grep ' main ')
  main=$(awk '$1 !~ /-/ { print $3; exit }' <<< "$sites")
  security=$(awk '$1 ~ /-security$/ { print $3; exit }' <<< "$sites")
  case $1 in
    *-security) echo "${security:-$main-security}" ;;
    *) echo "$main" ;;
  esac
}

if [ ! -s "$state/sources.list" ]; then
  mkdir -p "$state"/{lists,cache/archives}/partial
  for suite in $suites; do
    site=$(archive "$suite")
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main"
  done > "$state/sources.part"
  touch "$state/status"
  mv "$state/sources.part" "$state/sources.list"
fi
exec "$@" \
  -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
  -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
  -o APT::Architecture="$architecture" -o APT::Architectures::="$architecture" -o APT::Sandbox::User=root \
  -o APT::Update::Error-Mode=any -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false
