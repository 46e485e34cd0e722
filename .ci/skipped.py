"""Exits 1 if a test of a package skipped, or none ran: python3 skipped.py JUNIT.xml PACKAGE"""

import sys
from xml.etree import ElementTree


def main(path: str, package: str) -> int:
    # A module that skips as a whole has an empty class name, and its own name as the test's.
    ran = {
        f"{case.get('classname')}.{case.get('name')}".lstrip("."): case.find("skipped")
        for case in ElementTree.parse(path).iter("testcase")
    }
    ours = {name: skipped for name, skipped in ran.items() if name.startswith(f"{package}.")}
    for name, skipped in ours.items():
        if skipped is not None:
            print(f"{name} skipped: {skipped.get('message')}")
    print(f"{len(ours)} tests of {package}")
    return 0 if ours and all(skipped is None for skipped in ours.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
