"""The frame of the report page: one HTML document with its style sheet, nothing loaded from elsewhere."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #2b303b; --soft: #667080; --line: #e3dfd5; --paper: #fbfaf7; --card: #ffffff;
  --accent: #2e7d6b; --accent-soft: #e8f1ee; --warm: #c8452f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main, header > div { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { background: #3b4252; color: #f6f4ef; padding: 40px 0 30px; }
h1 { margin: 0; font-size: 34px; line-height: 1.15; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 8px 0 0; max-width: none; color: #c9cfd9; }
header code { background: rgba(255, 255, 255, .12); color: inherit; }
nav { margin-top: 18px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; }
nav a { color: #dfe4ea; text-decoration: none; border-bottom: 1px solid rgba(255, 255, 255, .3); }
nav a:hover { border-color: #fff; }
section { padding: 34px 0 30px; border-bottom: 1px solid var(--line); }
section:last-child { border-bottom: 0; padding-bottom: 64px; }
h2 { margin: 0 0 8px; font-size: 23px; line-height: 1.25; letter-spacing: -0.005em; }
h3 { margin: 26px 0 8px; font-size: 16px; }
p { margin: 8px 0 12px; max-width: 46em; }
p.missing { color: var(--soft); font-style: italic; }
p.caption { color: var(--soft); font-size: 14px; line-height: 1.5; max-width: 54em; }
.key-figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 28px 0 0; }
.figure-card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 13px 14px;
  display: flex; flex-direction: column; }
.figure-card .label { font-size: 13px; color: var(--soft); }
.figure-card .value { font-size: 29px; line-height: 1.25; font-weight: 650; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.figure-card .note { font-size: 12.5px; white-space: nowrap; color: var(--soft); }
.grid { display: grid; gap: 18px; margin: 14px 0 10px; align-items: start; }
.grid.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.grid.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.grid.four { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 14px; }
.grid.five { grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px; }
.stack { min-width: 0; }
.stack h3 { margin-top: 4px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 3px; }
figure.framed img { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
figcaption { margin-top: 5px; font-size: 13px; line-height: 1.4; color: var(--soft); }
.narrow { max-width: 700px; }
.scroll { overflow-x: auto; margin: 10px 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid #c9c4b8; padding: 5px 6px; }
td { border-bottom: 1px solid var(--line); padding: 5px 6px; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
tr.marked td { background: var(--accent-soft); font-weight: 600; }
.verdict { border-left: 3px solid var(--accent); padding: 4px 0 4px 12px; margin: 12px 0; font-size: 15px; }
.verdict strong { font-weight: 600; }
.verdict.below { border-color: var(--warm); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .87em; }
code { background: #efece4; border-radius: 3px; padding: 1px 4px; overflow-wrap: anywhere; }
pre { background: #f1eee7; border-radius: 6px; padding: 12px 14px; overflow-x: auto; line-height: 1.45; margin: 10px 0;
  font-size: 13px; }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--accent); font-weight: 600; font-size: 15px; }
.bar { display: inline-block; width: 100%; min-width: 70px; height: 10px; background: #eeebe3; border-radius: 5px;
  overflow: hidden; }
.bar > span { display: block; height: 100%; background: var(--accent); }
.legend { display: inline-flex; align-items: center; gap: 5px; margin-right: 14px; white-space: nowrap; }
@media (max-width: 760px) {
  body { font-size: 15.5px; }
  main, header > div { padding: 0 16px; }
  header { padding: 28px 0 22px; }
  h1 { font-size: 27px; }
  .grid.two, .grid.three { grid-template-columns: minmax(0, 1fr); }
  .grid.four, .grid.five { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .key-figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .figure-card { padding: 11px 12px; }
  .figure-card .value { font-size: 25px; }
}
@media print { header { background: none; color: inherit; } nav { display: none; } section { break-inside: avoid; } }
</style>
</head>
<body>
<header><div>
<h1>$heading</h1>
<p>$subtitle</p>
<nav>$navigation</nav>
</div></header>
<main>
$body
</main>
</body>
</html>
""")
