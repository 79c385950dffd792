"""The Syncline server: applies pushed records to a store and streams the changes."""
