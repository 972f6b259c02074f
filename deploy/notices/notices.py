"""Prints what the dependencies of a package say in files NOTICE: notices.py PACKAGE < (cargo metadata)"""

import json
import pathlib
import sys

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
found, to_visit = set(), [i for i, package in packages.items() if package["name"] == sys.argv[1] and not package["source"]]
while to_visit:
    package = to_visit.pop()
    if package in found:
        continue
    found.add(package)
    for dependency in nodes[package]["deps"]:
        if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
            to_visit.append(dependency["pkg"])
for package in sorted((packages[i] for i in found), key=lambda package: package["name"]):
    for notice in sorted(pathlib.Path(package["manifest_path"]).parent.glob("NOTICE*")):
        print("-" * 80)
        print(f"{notice.name} of {package['name']} {package['version']}\n")
        print(notice.read_text(errors="replace").strip() + "\n")
