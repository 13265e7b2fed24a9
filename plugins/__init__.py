"""The plugins that come with itdesk; each is loaded when its section is configured."""
