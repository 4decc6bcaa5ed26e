package proof

import (
	"fmt"
	"html/template"
	"io"
	"strings"
	"unicode/utf8"
)

const title = "Tandem: what was tested, and what came of it"

// widest is how wide a column of the text may be; what is longer ends its line.
const widest = 78

// Text writes the page for a terminal.
func (p Page) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\ncommit  %s\ndate    %s\n", title, p.Facts.Commit, p.Facts.Date.UTC().Format("2006-01-02 15:04 UTC"))
	for _, l := range p.Facts.Lines {
		fmt.Fprintf(&b, "%-7s %s\n", l[0], l[1])
	}
	fmt.Fprintf(&b, "%-7s %s\n", "run", p.Facts.extent())
	b.WriteString("\n")
	table(&b, []string{"bar", "want", "got", ""}, bars(p.Bars))
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "\n%s\n%s\n", s.Title, strings.Repeat("=", utf8.RuneCountInString(s.Title)))
		if s.Intro != "" {
			b.WriteString(wrap(s.Intro, "") + "\n")
		}
		table(&b, s.Head, s.Rows)
	}
	fmt.Fprintf(&b, "\n%s\n", p.Verdict())
	_, err := io.WriteString(w, b.String())
	return err
}

// extent says how much was run.
func (f Facts) extent() string {
	said := "all"
	if f.Sample {
		said = "a sample of what takes long, as on every change"
	}
	if f.Kept > 0 {
		said += fmt.Sprintf("; %d packages had passed in an earlier run on this commit, and were not run again", f.Kept)
	}
	return said
}

func bars(list []Bar) []Row {
	var rows []Row
	for _, b := range list {
		word := "met"
		if !b.Met {
			word = "MISSED"
		}
		rows = append(rows, Row{[]string{b.What, b.Want, b.Got, word}, state(b.Met)})
	}
	return rows
}

// table writes rows in columns. A column is as wide as its longest cell, up to widest; the
// last one is as long as it is.
func table(b *strings.Builder, head []string, rows []Row) {
	width := make([]int, len(head))
	all := rows
	if len(head) > 0 {
		all = append([]Row{{Cells: head}}, rows...)
	}
	for _, r := range all {
		for i, c := range r.Cells {
			if i < len(width) {
				width[i] = max(width[i], min(widest, utf8.RuneCountInString(c)))
			}
		}
	}
	for _, r := range all {
		mark := map[State]string{Bad: "! ", None: "- "}[r.State]
		line := fmt.Sprintf("%-2s", mark)
		for i, c := range r.Cells {
			c = strings.ReplaceAll(c, "\n", "\n      ")
			switch {
			case len(r.Cells) == 1:
				line += wrap(c, "  ")
			case i == len(r.Cells)-1:
				line += c
			default:
				line += c + strings.Repeat(" ", max(0, width[i]-utf8.RuneCountInString(c))) + "  "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// wrap breaks a paragraph into lines, of which all but the first are indented.
func wrap(text, indent string) string {
	const width = 100
	var b strings.Builder
	at := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case at+1+utf8.RuneCountInString(word) > width:
			b.WriteString("\n" + indent)
			at = len(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += utf8.RuneCountInString(word)
	}
	return b.String()
}

// page is self-contained: no script, no font, no picture from elsewhere. Tables become
// blocks on a narrow screen, and print in black.
var page = template.Must(template.New("page").Funcs(template.FuncMap{"title": func() string { return title }, "extent": Facts.extent}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: #111; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #bbb }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere; white-space: pre-line }
tr.good td:last-child::before { content: "✓ "; color: #060 }
tr.bad { background: #fdd } tr.bad td:last-child::before { content: "✗ "; color: #a00 }
tr.none { color: #666 }
.verdict { font-weight: bold; font-size: 1.15rem; margin-top: 2rem }
@media (max-width: 40rem) { thead { display: none } tr, td { display: block } tr { padding: .4rem 0; border-bottom: 1px solid #bbb } td { border: 0; padding: 0 } }
@media print { body { max-width: none; font-size: 10pt } tr { break-inside: avoid } tr.bad { background: none; font-weight: bold } }
</style>
</head>
<body>
<h1>{{title}}</h1>
<table>
<tr><td>commit</td><td>{{.Facts.Commit}}</td></tr>
<tr><td>date</td><td>{{.Facts.Date.UTC.Format "2006-01-02 15:04 UTC"}}</td></tr>
{{range .Facts.Lines}}<tr><td>{{index . 0}}</td><td>{{index . 1}}</td></tr>
{{end}}<tr><td>run</td><td>{{extent .Facts}}</td></tr>
</table>
<h2>Bars</h2>
<table>
<thead><tr><th>bar</th><th>want</th><th>got</th></tr></thead>
{{range .Bars}}<tr class="{{if .Met}}good{{else}}bad{{end}}"><td>{{.What}}</td><td>{{.Want}}</td><td>{{.Got}}</td></tr>
{{end}}</table>
{{range .Sections}}<h2>{{.Title}}</h2>
{{with .Intro}}<p>{{.}}</p>
{{end}}<table>
{{with .Head}}<thead><tr>{{range .}}<th>{{.}}</th>{{end}}</tr></thead>
{{end}}{{range .Rows}}<tr class="{{.State}}">{{range .Cells}}<td>{{.}}</td>{{end}}</tr>
{{end}}</table>
{{end}}<p class="verdict">{{.Verdict}}</p>
</body>
</html>
`))

// HTML writes the page for a reader who gets it as a file.
func (p Page) HTML(w io.Writer) error { return page.Execute(w, p) }
