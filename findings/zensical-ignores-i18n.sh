#!/bin/sh
# zensical 0.0.73, announced as the successor of MkDocs Material that reads the same mkdocs.yml:
# a site with mkdocs-static-i18n (languages by suffix, index.zh.md) builds with status 0, but the
# plugin's languages are not there. The Chinese page lies at index.zh/, not at zh/, and both pages
# say lang="en". A hook named in `hooks:` does not run either. MkDocs 1.6.1 does all three.
# Seen: "zensical: zh/ no, index.zh/ yes, lang en, hook no; mkdocs: zh/ yes, lang zh, hook yes".
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install zensical==0.0.73 mkdocs-material==9.7.6 \
    mkdocs-static-i18n==1.3.1 2>/dev/null
cd "$folder"
mkdir docs
echo "# Hello" > docs/index.md
echo "# 你好" > docs/index.zh.md
cat > hook.py <<'HOOK'
def on_page_markdown(markdown, **kwargs):
    return markdown + "\n\nthe hook ran\n"
HOOK
cat > mkdocs.yml <<'CONFIG'
site_name: Site
site_url: https://example.invalid/
theme:
  name: material
  language: en
hooks: [hook.py]
plugins:
  - search
  - i18n:
      docs_structure: suffix
      languages:
        - {locale: en, default: true, name: English, build: true}
        - {locale: zh, name: 中文, build: true}
CONFIG
has() { [ -e "$1" ] && echo yes || echo no; }
lang() { grep -o '<html lang="[a-z]*"' "$1" | cut -d'"' -f2; }
hook() { grep -q "the hook ran" "$1" && echo yes || echo no; }
venv/bin/zensical build > /dev/null 2>&1
seen="zensical: zh/ $(has site/zh/index.html), index.zh/ $(has site/index.zh/index.html)"
seen="$seen, lang $(lang site/index.zh/index.html), hook $(hook site/index.html)"
rm -rf site
NO_MKDOCS_2_WARNING=1 venv/bin/mkdocs -q build > /dev/null 2>&1
seen="$seen; mkdocs: zh/ $(has site/zh/index.html), lang $(lang site/zh/index.html)"
seen="$seen, hook $(hook site/index.html)"
echo "$seen"
[ "$seen" = "zensical: zh/ no, index.zh/ yes, lang en, hook no; mkdocs: zh/ yes, lang zh, hook yes" ]
