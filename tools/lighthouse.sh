#!/bin/bash
# Lighthouse's scores for accessibility and best practices of some pages in _docs/, on a phone and on a desktop; fails
# below 95. Needs npm and a Chromium (on the path, or named by CHROME_PATH). First run tools/docs.py.
set -euo pipefail
cd "$(dirname "$0")/../_docs"
export CHROME_PATH=${CHROME_PATH:-$(command -v chromium chromium-browser google-chrome | head -n 1)}
out=$(mktemp -d)
python3 -m http.server 8765 --bind 127.0.0.1 >/dev/null 2>&1 &
trap 'kill %1; rm -rf "$out"' EXIT
sleep 1
for page in "${@:-index}"; do
  for preset in perf desktop; do       # perf: Lighthouse's phone
    npx --yes lighthouse@12 "http://127.0.0.1:8765/$page.html" --preset=$preset --quiet --output=json \
      --only-categories=accessibility,best-practices --output-path="$out/report.json" \
      --chrome-flags="--headless=new --no-sandbox --disable-gpu"
    python3 - "$page" ${preset/perf/phone} "$out/report.json" <<'P'
import json, sys
scores = {k: round(100*v['score']) for k, v in json.load(open(sys.argv[3]))['categories'].items()}
print(*sys.argv[1:3], scores)
sys.exit(min(scores.values()) < 95)
P
  done
done
