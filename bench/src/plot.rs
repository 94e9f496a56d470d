//! Throughput against latency, as a drawing in SVG. Both axes are logarithmic.

use std::fmt::Write as _;

use crate::outcome::Curve;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 6] = [
    "#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#555555",
];

/// One axis: decades from `from` to `to` over `length` points.
struct Axis {
    from: f64,
    to: f64,
    length: f64,
}

impl Axis {
    fn over(figures: impl Iterator<Item = f64>, length: f64) -> Self {
        let (low, high) = figures
            .filter(|figure| *figure > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), figure| {
                (low.min(figure), high.max(figure))
            });
        // A drawing of nothing still has a decade.
        let (low, high) = if low.is_finite() {
            (low, high)
        } else {
            (1.0, 10.0)
        };
        let from = low.log10().floor();
        Axis {
            from,
            to: high.log10().ceil().max(from + 1.0),
            length,
        }
    }

    fn at(&self, figure: f64) -> f64 {
        (figure.max(f64::MIN_POSITIVE).log10() - self.from) / (self.to - self.from) * self.length
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.from as i32..=self.to as i32).map(|power| 10f64.powi(power))
    }
}

/// The drawing.
pub(crate) fn svg(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let across = Axis::over(points().map(|(_, rate, ..)| *rate), WIDTH - LEFT - RIGHT);
    let up = Axis::over(points().map(|(.., p99)| *p99), HEIGHT - TOP - BOTTOM);
    let x = |rate: f64| LEFT + across.at(rate);
    let y = |ms: f64| HEIGHT - BOTTOM - up.at(ms);
    let mut out = String::new();
    let mut add = |text: String| {
        writeln!(out, "{text}").expect("a string takes everything");
    };
    add(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">"
    ));
    add(format!(
        "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>"
    ));
    add(format!(
        "<text x=\"{LEFT}\" y=\"22\" font-size=\"14\">SET: commands a second against the 99th \
         percentile, for 1 to 200 clients</text>"
    ));
    for rate in across.decades() {
        let x = x(rate);
        add(format!(
            "<path d=\"M{x:.1} {TOP}V{:.1}\" stroke=\"#dddddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}/s</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            label(rate)
        ));
    }
    for ms in up.decades() {
        let y = y(ms);
        add(format!(
            "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#dddddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{} ms</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            label(ms)
        ));
    }
    for (n, curve) in curves.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let line: Vec<String> = curve
            .points
            .iter()
            .map(|(_, rate, _, p99)| format!("{:.1},{:.1}", x(*rate), y(*p99)))
            .collect();
        add(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        ));
        for (clients, rate, _, p99) in &curve.points {
            add(format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{} with {clients} \
                 clients</title></circle>",
                x(*rate),
                y(*p99),
                escaped(&curve.name)
            ));
        }
        let place = TOP + 16.0 + 20.0 * n as f64;
        add(format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT + 14.0,
            place - 10.0,
            WIDTH - RIGHT + 32.0,
            place,
            escaped(&curve.name)
        ));
    }
    add("</svg>".to_owned());
    out
}

fn label(figure: f64) -> String {
    match figure {
        1e6.. => format!("{}M", figure / 1e6),
        1e3.. => format!("{}k", figure / 1e3),
        _ => format!("{figure}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn_within_the_axes() {
        let curve = Curve {
            name: "a < b".to_owned(),
            points: vec![
                (1, 1500.0, 0.5, 0.7),
                (50, 40_000.0, 1.0, 9.0),
                (200, 41_000.0, 4.0, 12.0),
            ],
        };
        let drawing = svg(&[curve]);
        assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"));
        assert_eq!(drawing.matches("<circle").count(), 3);
        assert!(
            drawing.contains("a &lt; b")
                && drawing.contains("100k/s")
                && drawing.contains("0.1 ms")
        );
        for place in drawing.split("cx=\"").skip(1) {
            let x: f64 = place.split('"').next().unwrap().parse().unwrap();
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
        }
    }

    #[test]
    fn nothing_makes_an_empty_drawing() {
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
