"""From conversations to an aligned model: messages, masks, packed samples, preference losses."""
