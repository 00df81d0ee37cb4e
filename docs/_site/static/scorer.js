// What ranks the results of a search: pages, which explain, before the API, whose names are many.
var Scorer = {
  score: ([page, title, anchor, description, score]) => page.startsWith("_made/api/") ? score - 20 : score,
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 5, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
