#!/usr/bin/env bash
# Create .venv with uv, holding hdlm (editable) and every extra, at the tested versions.
#     bash create_uv_venv.sh && source .venv/bin/activate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v uv >/dev/null; then
    echo "create_uv_venv.sh: uv was not found. Install it (\`pip install uv\`) and run this again, or use pip alone:" >&2
    echo "    python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[all]'" >&2
    exit 2
fi
[ -d .venv ] || uv venv --seed --python '>=3.11,<3.14' .venv
uv pip install --python .venv/bin/python --constraint constraints.txt --editable '.[all]'
echo "Done. Now run: source .venv/bin/activate"
