mod file;
mod glob;
mod name;
mod options;
mod properties;
mod quantity;
mod specifier;
mod words;
