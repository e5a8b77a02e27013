//! `muster-bench`: measures what Muster is built to be good at.
mod figure;
mod placements;

fn main() -> anyhow::Result<()> {
    let figure = placements::placements_per_s()?;
    println!("{}\n{}", figure::head(), figure.row());
    Ok(())
}
