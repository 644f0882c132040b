// What went wrong, in the reader's language where we have words for it, and in the server's where not.

import { known, t } from "/ui/words.js";

export function explained(error) {
  const key = `refused_${error.code}`;
  return known(key) ? t(key, { seconds: error.seconds || 10 }) : error.message;
}
