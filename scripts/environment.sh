# Finds Pythons, and makes virtual environments with them under .venvs/. The scripts beside it source this file.

unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX

say() {
    printf '%s\n' "$*" >&2
}

# about PYTHON...: "3.08 /its/path" of each that is 3.8 or newer and can make environments.
about() {
    for path in "$@"; do
        "$path" -c '
import ensurepip, ssl, sys, venv
if sys.version_info >= (3, 8) and sys.version_info.releaselevel == "final":
    print("%d.%02d %s" % (sys.version_info[0], sys.version_info[1], sys.executable))' </dev/null 2>/dev/null
    done
}

# pythons: all such Pythons on PATH and under ~/.pyenv, one of each version, oldest first.
pythons() {
    {
        about python3 python
        number=8
        while [ "$number" -le 30 ]; do
            command -v "python3.$number" >/dev/null && about "python3.$number"
            number=$((number + 1))
        done
        about "${HOME:-/nowhere}"/.pyenv/versions/*/bin/python3
    } | LC_ALL=C sort -s -u -k1,1
}

# default_python: python3 if it will do, else the newest Python that does.
default_python() {
    line=$(about python3)
    [ -n "$line" ] || line=$(pythons | tail -n 1)
    if [ -z "$line" ]; then
        say "There is no Python 3.8 or newer here that can make virtual environments."
        say "(On Debian and Ubuntu that takes the package python3-venv.)"
        return 1
    fi
    printf '%s\n' "${line#* }"
}

# requirements PYTHON SECTION...: what setup.cfg asks for; "install" is what the package itself needs.
requirements() {
    "$1" - "$@" <<'PYTHON'
import configparser, sys
setup = configparser.ConfigParser()
setup.read("setup.cfg")
for name in sys.argv[2:]:
    text = setup["options"]["install_requires"] if name == "install" else setup["options.extras_require"][name]
    print("\n".join(line.strip() for line in text.strip().splitlines()))
PYTHON
}

# environment NAME PYTHON: make .venvs/NAME-VERSION with the requirements on standard input, unless it is there
# already, and print the path of its Python. With the Python's own pip there is no need of another one.
environment() {
    version=$("$2" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    folder=$PWD/.venvs/$1-$version
    wanted=$(cat)
    if ! [ -f "$folder/made-for" ] || [ "$(cat "$folder/made-for")" != "$wanted" ]; then
        say "Making the virtual environment .venvs/$1-$version ..."
        rm -rf "$folder"
        mkdir -p .venvs
        printf '%s\n' "$wanted" >"$folder.txt"
        if ! install_into "$folder" "$2" >"$folder.log" 2>&1; then
            tail -n 20 "$folder.log" >&2
            say "That did not work; all of it is in $folder.log"
            return 1
        fi
        mv "$folder.txt" "$folder/made-for"
    fi
    printf '%s\n' "$folder/bin/python"
}

# install_into FOLDER PYTHON: make the environment and install what FOLDER.txt lists.
install_into() {
    options="--disable-pip-version-check --no-input --no-user --no-compile"
    # shellcheck disable=SC2086
    if "$2" -m pip --version >/dev/null 2>&1; then
        "$2" -m venv --without-pip "$1" &&
            packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
            "$2" -m pip install $options --target "$packages" -r "$1.txt"
    else
        "$2" -m venv "$1" && "$1/bin/python" -m pip install $options -r "$1.txt"
    fi
}
