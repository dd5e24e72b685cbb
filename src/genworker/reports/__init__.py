"""Scores, tables, pages and exports of cohorts. Nothing here writes into a store or knows how it is read."""
