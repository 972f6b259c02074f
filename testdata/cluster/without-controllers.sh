#!/usr/bin/env bash
# Has kubelet's cgroup library leave out the limits that a cgroup2 hierarchy has no controller for, as where the controllers
# are those of cgroup v1: without-controllers.sh fs2.go
set -euo pipefail
call='(set(Pids|Memory|Io|CPU|Cpuset|HugeTlb)|fscommon\.RdmaSet)\(m\.dirPath, r\)'
[ "$(grep -cE "if err := $call;" "$1")" = 7 ] || {
  echo "$1 does not set limits as expected" >&2
  exit 1
}
sed -i -E "s/if err := ($call);/if err := whereControlled(\1);/" "$1"
cat >> "$1" << 'END'

// whereControlled passes over a limit whose file is not there, or is not to be written.
func whereControlled(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil
	}
	return err
}
END
