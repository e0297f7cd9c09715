#!/bin/bash
# Clean the notebooks, export the package, write the README; fail where that changed a file. Run it before a commit.
set -euo pipefail
cd "$(dirname "$0")/.."
touch README.md
mkdir -p imgs
unset IN_TEST        # nbdev_export does nothing where this is set
state() { find nbs avae imgs README.md -type f -not -name '*.pyc' -not -path '*/.*' -exec sha256sum {} + | sort; }
before=$(state)
nbdev_clean
nbdev_export
python tools/readme.py
changed=$(comm -3 <(echo "$before") <(state) | awk '{print $2}' | sort -u)
[ -z "$changed" ] || { echo "was not in sync, is now:" $changed; exit 1; }
echo "in sync"
