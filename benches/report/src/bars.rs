//! A chart of horizontal bars, as SVG.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Result;

pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) axis: &'static str,
    pub(crate) scale: Scale,
    pub(crate) lines: Vec<Line>,
    pub(crate) bars: Vec<Bar>,
}

/// One bar, from the top down.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) side: Side,
    pub(crate) value: f64,
    /// The quartiles, drawn as a thin line over the bar.
    pub(crate) spread: (f64, f64),
    /// Written behind the bar.
    pub(crate) note: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Ours,
    Theirs,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    Linear,
    Log,
    /// Linear, to 100.
    Percent,
}

/// A vertical line, for a target.
pub(crate) struct Line {
    pub(crate) at: f64,
    pub(crate) text: String,
}

impl Line {
    pub(crate) fn target(at: f64) -> Self {
        Self {
            at,
            text: "target".to_owned(),
        }
    }
}

type Area<'p> = DrawingArea<SVGBackend<'p>, Shift>;

impl Chart {
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let height = ABOVE + ROW * self.bars.len() as i32 + BELOW;
        let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let most = self.bars.iter().flat_map(|bar| [bar.value, bar.spread.1]);
        let most = most.chain(self.lines.iter().map(|line| line.at));
        let most = most.fold(f64::MIN_POSITIVE, f64::max);
        let least = self.bars.iter().flat_map(|bar| [bar.value, bar.spread.0]);
        let least = least.filter(|value| *value > 0.0).fold(1.0, f64::min);
        match self.scale {
            Scale::Linear => self.draw_from(&area, 0.0, 0.0..most * 1.15)?,
            Scale::Percent => self.draw_from(&area, 0.0, 0.0..100.0)?,
            Scale::Log => {
                let from = least / 2.0;
                self.draw_from(&area, from, (from..most * 2.5).log_scale())?;
            }
        }
        area.present()?;
        println!("written: {}", path.display());
        Ok(())
    }

    /// Draws the bars from `from` on.
    fn draw_from<X>(&self, area: &Area<'_>, from: f64, x: X) -> Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
    {
        let count = self.bars.len() as f64;
        // Between title and bars, there is room for what the lines say.
        let mut chart = ChartBuilder::on(&area.titled(self.title, ("sans-serif", 20))?)
            .margin(10)
            .margin_top(25)
            .x_label_area_size(45)
            .y_label_area_size(LABELS)
            .build_cartesian_2d(x, 0.0..count)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .x_labels(8)
            .x_desc(self.axis)
            .x_label_formatter(&|value| short(*value))
            .axis_desc_style(("sans-serif", 14))
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .draw()?;
        // From the top down, so the last has the lowest place.
        for (number, bar) in self.bars.iter().enumerate() {
            let place = count - number as f64;
            let (top, middle, bottom) = (place - 0.15, place - 0.5, place - 0.85);
            let color = match bar.side {
                Side::Ours => RGBColor(31, 95, 168),
                Side::Theirs => RGBColor(175, 175, 175),
            };
            let corners = [(from, top), (bar.value.max(from), bottom)];
            chart.draw_series([Rectangle::new(corners, color.filled())])?;
            let spread = [bar.spread.0, bar.spread.1].map(|value| (value.max(from), middle));
            chart.draw_series([PathElement::new(spread, BLACK.stroke_width(1))])?;
            let (_, y) = chart.backend_coord(&(from, middle));
            let right = ("sans-serif", 13)
                .into_font()
                .into_text_style(area)
                .pos(text_at(HPos::Right));
            area.draw(&Text::new(bar.label.clone(), (LABELS as i32, y), right))?;
            let (x, _) = chart.backend_coord(&(bar.value.max(bar.spread.1).max(from), middle));
            let left = ("sans-serif", 13)
                .into_font()
                .into_text_style(area)
                .pos(text_at(HPos::Left));
            area.draw(&Text::new(bar.note.clone(), (x + 6, y), left))?;
        }
        for line in &self.lines {
            let ends = [(line.at, 0.0), (line.at, count)];
            chart.draw_series([PathElement::new(ends, TARGET.stroke_width(2))])?;
            let (x, y) = chart.backend_coord(&(line.at, count));
            let over = ("sans-serif", 12)
                .into_font()
                .color(&TARGET)
                .pos(text_at(HPos::Center));
            area.draw(&Text::new(line.text.clone(), (x, y - 8), over))?;
        }
        Ok(())
    }
}

fn text_at(h_pos: HPos) -> Pos {
    Pos::new(h_pos, VPos::Center)
}

fn short(value: f64) -> String {
    match value {
        0.0..1.0 => format!("{}", (value * 1000.0).round() / 1000.0),
        1.0..10.0 => format!("{}", (value * 10.0).round() / 10.0),
        _ => format!("{value:.0}"),
    }
}

const WIDTH: i32 = 1000;
/// The room for the labels of the bars.
const LABELS: u32 = 300;
const ROW: i32 = 26;
const ABOVE: i32 = 70;
const BELOW: i32 = 55;
const TARGET: RGBColor = RGBColor(192, 57, 43);
