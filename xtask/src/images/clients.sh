# Run by mmdebstrap in the finished root, $1: adds clients from the registries of Python and
# Node, in the versions named, built for the root's own Python.
set -eu
version=$(chroot "$1" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
site=/usr/local/lib/python$version/dist-packages
python3 -m pip install --quiet --root-user-action=ignore --no-compile --target "$1$site" \
    --only-binary=:all: --implementation cp --python-version "$version" \
    --platform manylinux2014_x86_64 $MSB_PYTHON_CLIENTS
npm install --silent --no-package-lock --ignore-scripts --prefix "$1/usr/local/lib/clients" \
    $MSB_NODE_CLIENTS
# Guests that are emulated would take long for it. Times of files are changed after this.
chroot "$1" python3 -m compileall -q --invalidation-mode unchecked-hash "$site"
# What no client reads.
rm -rf "$1/usr/share/doc" "$1/usr/share/locale" "$1/usr/share/man" "$1/var/cache/apt" \
    "$1/var/lib/apt/lists" "$1$site/bin"
