mod limits;
mod nodes;
mod rates;
