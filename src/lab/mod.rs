//! Where a driver's home can live: backings, made for a cell and given back.
