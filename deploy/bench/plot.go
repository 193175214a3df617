package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// panel is one drawing: a line through points.
type panel struct {
	title, across string
	x, y          []float64
}

const (
	panelWidth, panelHeight = 420, 260
	marginLeft, marginRight = 60, 20
	marginTop, marginBottom = 40, 50
)

// draw puts panels beside each other, two in a row, as an SVG document. Every scale
// begins at 0, so that what grows twice as much looks so.
func draw(panels []panel) []byte {
	var b strings.Builder
	rows := (len(panels) + 1) / 2
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", 2*panelWidth, rows*panelHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", 2*panelWidth, rows*panelHeight)
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i%2*panelWidth, i/2*panelHeight)
		p.draw(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func (p panel) draw(b *strings.Builder) {
	text := func(x, y float64, anchor, words string) {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(words))
	}
	line := func(x1, y1, x2, y2 float64, colour string) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, colour)
	}
	const left, right, top, bottom = marginLeft, panelWidth - marginRight, marginTop, panelHeight - marginBottom
	xStep, xEnd := scale(p.x)
	yStep, yEnd := scale(p.y)
	atX := func(v float64) float64 { return left + (right-left)*v/xEnd }
	atY := func(v float64) float64 { return bottom - (bottom-top)*v/yEnd }
	text(panelWidth/2, 20, "middle", p.title)
	text((left+right)/2, panelHeight-12, "middle", p.across)
	for v := 0.0; v <= yEnd*1.001; v += yStep {
		line(left, atY(v), right, atY(v), "#ddd")
		text(left-6, atY(v)+4, "end", label(v))
	}
	for v := 0.0; v <= xEnd*1.001; v += xStep {
		line(atX(v), bottom, atX(v), bottom+4, "#888")
		text(atX(v), bottom+16, "middle", label(v))
	}
	var points []string
	for i := range p.x {
		points = append(points, fmt.Sprintf("%.1f,%.1f", atX(p.x[i]), atY(p.y[i])))
	}
	fmt.Fprintf(b, `<polyline fill="none" stroke="#06c" stroke-width="2" points="%s"/>`+"\n", strings.Join(points, " "))
	for i := range p.x {
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="#06c"><title>%s: %s</title></circle>`+"\n", atX(p.x[i]), atY(p.y[i]), label(p.x[i]), label(p.y[i]))
	}
}

// scale finds a round step, and an end at or above all values, with four to ten
// steps between.
func scale(values []float64) (step, end float64) {
	most := 0.0
	for _, v := range values {
		most = max(most, v)
	}
	if most <= 0 {
		return 1, 1
	}
	step = math.Pow(10, math.Floor(math.Log10(most)))
	for _, part := range []float64{5, 2} { // 1, 0.5, 0.2 of the power of ten
		if most/step >= 4 {
			break
		}
		step = math.Pow(10, math.Floor(math.Log10(most))) * part / 10
	}
	return step, math.Ceil(most/step-1e-9) * step
}

// label writes a number of an axis.
func label(v float64) string {
	if v >= 1000 {
		return thousands(int(math.Round(v)))
	}
	return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64)
}

// scalePanels draws memory of every curve, and idle CPU by tunnels.
func scalePanels(curves []scaleCurve) []panel {
	var panels []panel
	for _, c := range curves {
		if len(c.points) < 2 {
			continue // one point is no curve
		}
		memory := panel{title: "edge resident, MiB", across: c.name, x: []float64{0}, y: []float64{c.bare.memory / 1024}}
		idle := panel{title: "edge idle CPU, % of a core", across: c.name, x: []float64{0}, y: []float64{100 * c.bare.idle}}
		for _, p := range c.points {
			memory.x, memory.y = append(memory.x, float64(p.n)), append(memory.y, p.memory/1024)
			idle.x, idle.y = append(idle.x, float64(p.n)), append(idle.y, 100*p.idle)
		}
		panels = append(panels, memory, idle)
	}
	return panels
}
