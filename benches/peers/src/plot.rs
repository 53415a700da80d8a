//! Bars, on a scale of powers of ten.

use std::path::Path;

use buslane_cli::bench::report::Placement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::page::bytes;
use crate::result::Row;
use crate::section::Section;

/// Draws the near rows of a section.
pub fn draw(
    path: &Path,
    section: &Section,
    rows: &[&Row],
) -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<_> = rows
        .iter()
        .filter(|row| row.placement == Placement::Near)
        .collect();
    let values: Vec<f64> = rows
        .iter()
        .map(|row| row.figures[0].1.median.max(1.0))
        .collect();
    let Some(most) = values.iter().copied().reduce(f64::max) else {
        return Ok(());
    };
    let least = values.iter().copied().fold(most, f64::min);
    let label = |row: &Row| match row.peers {
        Some(peers) => format!("{peers} peers"),
        None => bytes(row.size),
    };
    let mut groups: Vec<String> = Vec::new();
    let mut transports: Vec<&str> = Vec::new();
    for row in &rows {
        let name = label(row);
        if !groups.contains(&name) {
            groups.push(name);
        }
        if !transports.contains(&row.transport) {
            transports.push(row.transport);
        }
    }
    let width = transports.len() as f64 + 1.0;
    let area = SVGBackend::new(path, (960, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let unit = if section.is_time() {
        "ns"
    } else {
        "messages/s"
    };
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!("{} (near), {unit}", section.title),
            ("sans-serif", 18),
        )
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(
            0.0..width * groups.len() as f64,
            (10_f64.powf(least.log10().floor())..10_f64.powf(most.log10().ceil())).log_scale(),
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .draw()?;
    let bottom = 10_f64.powf(least.log10().floor());
    let below = TextStyle::from(("sans-serif", 14)).pos(Pos::new(HPos::Center, VPos::Top));
    for (at, name) in groups.iter().enumerate() {
        let (x, y) = chart.backend_coord(&((at as f64 + 0.5) * width, bottom));
        area.draw(&Text::new(name.clone(), (x, y + 8), below.clone()))?;
    }
    for (which, transport) in transports.iter().enumerate() {
        let color = Palette99::pick(which).mix(0.85);
        let bars = rows
            .iter()
            .zip(&values)
            .filter(|(row, _)| row.transport == *transport);
        let bars = bars.filter_map(|(row, value)| {
            let group = groups.iter().position(|name| *name == label(row))?;
            let left = group as f64 * width + which as f64 + 0.5;
            Some(Rectangle::new(
                [(left, bottom), (left + 0.9, *value)],
                color.filled(),
            ))
        });
        chart
            .draw_series(bars)?
            .label(*transport)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}
