// Runs before anything is painted, so that a page in the dark does not flash white. "" follows the system.
try {
  const theme = localStorage.getItem("hwaga.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's colours it is.
}
