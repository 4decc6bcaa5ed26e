package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// looks are the marks of the tools in the plot: ours in one colour and filled, the peers by shape.
var looks = []struct{ tool, shape, colour string }{
	{ourDelta, "disc", "#c2185b"},
	{ourIndex, "square", "#c2185b"},
	{ourFull, "diamond", "#c2185b"},
	{reference, "ring", "#1565c0"},
	{"xdelta3 -9 lzma", "ring", "#64b5f6"},
	{"bsdiff", "ring", "#2e7d32"},
	{"zstd --patch-from", "ring", "#ef6c00"},
	{"rdiff", "cross", "#6d4c41"},
	{casyncTool, "frame", "#455a64"},
	{"rauc block-hash-index", "frame", "#90a4ae"},
	{"zchunk", "frame", "#f9a825"},
	{wholeZstd, "cross", "#9e9e9e"},
}

// plot draws the download of each tool as a share of the image, a line for each pair, as SVG. The scale is
// logarithmic: the shares span three decades.
func plot(results []result) []byte {
	const (
		left, top, width, step = 190, 60, 620, 34
		least, most            = 0.02, 100.0 // percent
	)
	height := step*len(results) + 10
	x := func(share float64) float64 {
		share = math.Min(math.Max(share, least), most)
		return left + width*math.Log(share/least)/math.Log(most/least)
	}
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#212121">`, left+width+200, top+height+50)
	p(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	p(`<text x="%d" y="24" font-size="16">Download as a share of the new image</text>`, left)
	if len(results) > 0 {
		p(`<text x="%d" y="44" fill="#616161">Further left is better; logarithmic. %s</text>`, left, results[len(results)-1].Date.Format("2 January 2006"))
	}
	for _, tick := range []float64{0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100} {
		p(`<path d="M%.1f %dV%d" stroke="#e0e0e0"/>`, x(tick), top, top+height)
		p(`<text x="%.1f" y="%d" text-anchor="middle" fill="#616161">%g %%</text>`, x(tick), top+height+18, tick)
	}
	for i, r := range results {
		y := top + step*i + step/2 + 5
		p(`<text x="%d" y="%d" text-anchor="end">%s</text>`, left-12, y+4, html.EscapeString(r.Pair))
		p(`<path d="M%d %dH%d" stroke="#e0e0e0"/>`, left, y, left+width)
		// Ours last, on top.
		for k := len(looks) - 1; k >= 0; k-- {
			if w, ok := r.row(looks[k].tool); ok {
				share := 100 * float64(w.Bytes) / float64(r.New.Size)
				p(`<g><title>%s, %s: %d bytes, %.3f %%</title>%s</g>`, html.EscapeString(r.Pair), html.EscapeString(w.Tool), w.Bytes, share, mark(looks[k].shape, looks[k].colour, x(share), float64(y)))
			}
		}
	}
	for k, l := range looks {
		y := top + 14 + 20*k
		p(`%s<text x="%d" y="%d">%s</text>`, mark(l.shape, l.colour, left+width+24, float64(y)), left+width+38, y+4, html.EscapeString(l.tool))
	}
	p(`</svg>`)
	return b.Bytes()
}

func mark(shape, colour string, x, y float64) string {
	switch shape {
	case "disc":
		return fmt.Sprintf(`<circle cx="%.1f" cy="%.1f" r="6" fill="%s"/>`, x, y, colour)
	case "square":
		return fmt.Sprintf(`<rect x="%.1f" y="%.1f" width="9" height="9" fill="%s"/>`, x-4.5, y-4.5, colour)
	case "diamond":
		return fmt.Sprintf(`<path d="M%.1f %.1fl6 6l-6 6l-6 -6z" fill="%s"/>`, x, y-6, colour)
	case "ring":
		return fmt.Sprintf(`<circle cx="%.1f" cy="%.1f" r="4.5" fill="none" stroke="%s" stroke-width="2"/>`, x, y, colour)
	case "frame":
		return fmt.Sprintf(`<rect x="%.1f" y="%.1f" width="8" height="8" fill="none" stroke="%s" stroke-width="2"/>`, x-4, y-4, colour)
	default: // cross
		return fmt.Sprintf(`<path d="M%.1f %.1fl8 8m0 -8l-8 8" stroke="%s" stroke-width="2"/>`, x-4, y-4, colour)
	}
}
