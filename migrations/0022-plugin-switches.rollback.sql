DROP TABLE IF EXISTS plugin_switches;
